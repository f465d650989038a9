-- Lets a lease run anew. One that has run out is still its owner's as long as nobody else took it.
--
-- KEYS[1]  the identity
-- ARGV[1]  the token
-- ARGV[2]  how long the lease runs, ms
-- ARGV[3]  how long the key is kept, ms; not shorter than the lease
local known = redis.call('HMGET', KEYS[1], 't', 'e')
if known[1] ~= ARGV[1] or not known[2] then
    return {'lost'}
end
local time = redis.call('TIME')
local now = math.floor(tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000)
-- First what is allowed without free memory.
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('HSET', KEYS[1], 'e', string.format('%.0f', now + tonumber(ARGV[2])))
return {'done'}
