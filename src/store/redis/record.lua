local try, sub, byte, find, format = redis.pcall, string.sub, string.byte, string.find, string.format
local LEASED, COMPLETED, FREE = byte('l'), byte('c'), byte('f')
local TIME = '^' .. string.rep('%d', 13)
local START = '^' .. string.rep('%d', 16) .. '[lcf]'

-- What is kept of an identity is a string: the token (16 digits), then one of
--   l, the end of the lease (13 digits, ms), who asked for it
--   c, the fingerprint (32 bytes), when it was completed (13 digits, ms)
--   f: released or forgotten; the token stays, so that the next one is greater.
--
-- Before it was a hash of t (token), e (end of the lease), n (who asked), a (completed at), f (fingerprint): what is left of those is
-- read as if it had been written today.
local function is_record(value)
    local state = find(value, START) and byte(value, 17)
    if state == LEASED then
        return find(value, TIME, 18) and #value > 30
    elseif state == COMPLETED then
        return find(value, TIME, 50) and #value == 62
    end
    return state == FREE and #value == 17
end

local function is_number(text, digits)
    return text and #text > 0 and #text <= digits and not find(text, '%D')
end

local function of_hash(t, e, n, a, f)
    local number = a or e or '0'
    if not is_number(t, 16) or not is_number(number, 13) or (a and (not f or #f ~= 32)) then
        return nil
    end
    local token, number = format('%016.0f', tonumber(t)), format('%013.0f', tonumber(number))
    if a then
        return token .. 'c' .. f .. number
    end
    return e and n and token .. 'l' .. number .. n or token .. 'f'
end

-- Answers with an error for what is neither, and with nothing for what is not there.
local function record(key)
    local value = try('GET', key)
    if not value or (type(value) == 'string' and is_record(value)) then
        return value or nil
    end
    local foreign = {err = 'WRONGTYPE what the key holds was not written by lapin-idempotent'}
    if type(value) == 'string' then
        return nil, foreign
    elseif not find(value.err, 'WRONGTYPE', 1, true) then
        return nil, value
    end
    local known = try('HMGET', key, 't', 'e', 'n', 'a', 'f')
    if known.err then
        return nil, known
    end
    local read = of_hash(known[1], known[2], known[3], known[4], known[5])
    return read, not read and foreign or nil
end

-- Microseconds since 1970, which a double holds exactly.
local function clock()
    local time = redis.call('TIME')
    return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local written = false

-- Keeps a record for so long; answers with 1, or with the error. First what is allowed without free memory: Redis does not stop a script
-- that has written, and a full server must not refuse to remember what was done.
local function keep(key, value, kept)
    if not written then
        redis.call('PEXPIRE', key, kept)
        written = true
    end
    local set = try('SET', key, value, 'PX', kept)
    return set.err and set or 1
end

