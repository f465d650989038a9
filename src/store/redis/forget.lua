-- Forgets that an identity was completed. The token stays, so that the next one is greater.
--
-- KEYS[1]  the identity
if redis.call('HDEL', KEYS[1], 'a', 'f') > 0 then
    return {'done'}
end
return {'unknown'}
