-- What is remembered of an identity.
--
-- KEYS[1]  the identity
--
-- Answers 0 if nothing is; l and for how long somebody has it; c and with which fingerprint and when it was completed.
local known, failed = record(KEYS[1])
if not known then
    return {failed or 0}
end
local state = byte(known, 17)
if state == FREE then
    return {0}
elseif state == COMPLETED then
    return {sub(known, 17)}
end
local left = tonumber(sub(known, 18, 30)) - math.floor(clock() / 1000)
return {left > 0 and 'l' .. format('%.0f', left) or 0}
