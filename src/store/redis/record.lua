local try, sub, byte, format = redis.pcall, string.sub, string.byte, string.format
local LEASED, COMPLETED, FREE = byte('l'), byte('c'), byte('f')

-- What is kept of an identity is a string: the token (16 digits), then one of
--   l, the end of the lease (13 digits, ms), who asked for it
--   c, the fingerprint (32 bytes), when it was completed (13 digits, ms)
--   f: released or forgotten; the token stays, so that the next one is greater.
--
-- Before it was a hash of t (token), e (end of the lease), n (who asked), a (completed at), f (fingerprint): what is left of those is
-- read as if it had been written today. Answers with an error for what is neither, and with nothing for what is not there.
local function record(key)
    local value = try('GET', key)
    if type(value) ~= 'table' then
        return value or nil
    end
    local known = try('HMGET', key, 't', 'e', 'n', 'a', 'f')
    local token, number = tonumber(known[1]), tonumber(known[4] or known[2] or 0)
    if known.err or not token or not number then
        return nil, value
    end
    token, number = format('%016.0f', token), format('%013.0f', number)
    if known[4] then
        return token .. 'c' .. (known[5] or '') .. number
    end
    return token .. (known[2] and 'l' .. number .. (known[3] or '') or 'f')
end

-- Microseconds since 1970, which a double holds exactly.
local function clock()
    local time = redis.call('TIME')
    return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

