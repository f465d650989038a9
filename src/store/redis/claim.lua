-- Claims an identity, unless it was completed or a lease on it runs.
--
-- KEYS[1]  the identity: a hash of t (token), e (end of the lease, ms), n (who asked for it), a (completed at, ms), f (fingerprint)
-- ARGV[1]  how long the lease runs, ms
-- ARGV[2]  how long the key is kept, ms; not shorter than the lease
-- ARGV[3]  who asks: unique to the call, so that a call that is sent twice is told of one lease
local known = redis.call('HMGET', KEYS[1], 't', 'e', 'n', 'a', 'f')
local token, ends, asked, completed = known[1], tonumber(known[2]), known[3], known[4]
if completed then
    return {'completed', completed, known[5]}
end

local time = redis.call('TIME')
local micros = tonumber(time[1]) * 1000000 + tonumber(time[2])
local now = math.floor(micros / 1000)
if ends and ends > now then
    if asked == ARGV[3] then
        return {'acquired', token}
    end
    return {'leased', string.format('%.0f', ends - now)}
end

-- The clock alone would do, were it never set back; the old token alone, were it never forgotten.
if token then
    micros = math.max(micros, tonumber(token) + 1)
end
token = string.format('%.0f', micros)
redis.call('HSET', KEYS[1], 't', token, 'e', string.format('%.0f', now + tonumber(ARGV[1])), 'n', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {'acquired', token}
