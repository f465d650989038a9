-- What is remembered of an identity.
--
-- KEYS[1]  the identity
local known = redis.call('HMGET', KEYS[1], 'e', 'a', 'f')
if known[2] then
    return {'completed', known[2], known[3]}
end
local time = redis.call('TIME')
local now = math.floor(tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000)
local ends = tonumber(known[1])
if ends and ends > now then
    return {'leased', string.format('%.0f', ends - now)}
end
return {'unknown'}
