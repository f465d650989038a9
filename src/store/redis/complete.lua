-- Completes an identity for the lease whose token it bears.
--
-- KEYS[1]  the identity
-- ARGV[1]  the token
-- ARGV[2]  the fingerprint
-- ARGV[3]  how long the key is kept from now on, ms
local known = redis.call('HMGET', KEYS[1], 't', 'e', 'a')
if known[1] ~= ARGV[1] then
    return {'lost'}
end
if known[3] then
    -- By this very lease: the reply was lost, and the caller asks again.
    return {'done'}
end
if not known[2] then
    return {'lost'}
end

local time = redis.call('TIME')
local now = math.floor(tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000)
-- First what is allowed without free memory: Redis does not stop a script that has written. The effect is done by now, and a full
-- server must not refuse to remember it.
redis.call('HDEL', KEYS[1], 'e', 'n')
redis.call('HSET', KEYS[1], 'a', string.format('%.0f', now), 'f', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {'done'}
