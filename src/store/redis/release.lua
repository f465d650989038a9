-- Gives an identity back. The token stays, so that the next one is greater. Released twice is released: the first reply was lost.
--
-- KEYS[1]  the identity
-- ARGV[1]  the token
local known = redis.call('HMGET', KEYS[1], 't', 'a')
if known[1] ~= ARGV[1] or known[2] then
    return {'lost'}
end
redis.call('HDEL', KEYS[1], 'e', 'n')
return {'done'}
