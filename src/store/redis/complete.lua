-- Completes identities, each for the lease whose token it bears.
--
-- KEYS       the identities
-- ARGV[1]    how long the keys are kept from now on, ms
-- ARGV[1+i]  what is kept of the identity i, except for the time: its token, c, the fingerprint
--
-- Answers for each: 1, or 0 if the lease was lost.
local now = format('%013.0f', math.floor(clock() / 1000))

local function completed(key, value)
    local known, failed = record(key)
    if not known then
        return failed or 0
    end
    local state = byte(known, 17)
    if (state ~= LEASED and state ~= COMPLETED) or sub(known, 1, 16) ~= sub(value, 1, 16) then
        return 0
    end
    if state == COMPLETED then
        -- By this very lease: the reply was lost, and the caller asks again.
        return 1
    end
    return keep(key, value .. now, ARGV[1])
end

local answers = {}
for i, key in ipairs(KEYS) do
    answers[i] = completed(key, ARGV[1 + i])
end
return answers
