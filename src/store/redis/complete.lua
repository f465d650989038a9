-- Completes identities, each for the lease whose token it bears.
--
-- KEYS       the identities
-- ARGV[1]    how long the keys are kept from now on, ms
-- ARGV[1+i]  the token and the fingerprint of the identity i
--
-- Answers for each: 1, or 0 if the lease was lost.
local at = 'c' .. string.format('%013.0f', math.floor(clock() / 1000))
local written = false

local function completed(key, lease)
    local known, failed = record(key)
    local token, state = string.sub(lease, 1, 16), known and string.sub(known, 17, 17)
    if not known or string.sub(known, 1, 16) ~= token or state == 'f' then
        return failed or 0
    end
    if state == 'c' then
        -- By this very lease: the reply was lost, and the caller asks again.
        return 1
    end
    if not written then
        -- First what is allowed without free memory: Redis does not stop a script that has written. The effect is done by now, and a
        -- full server must not refuse to remember it.
        redis.call('PEXPIRE', key, ARGV[1])
        written = true
    end
    local set = redis.pcall('SET', key, token .. at .. string.sub(lease, 17), 'PX', ARGV[1])
    return set.err and set or 1
end

local answers = {}
for i, key in ipairs(KEYS) do
    answers[i] = completed(key, ARGV[1 + i])
end
return answers
