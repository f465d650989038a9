-- What is remembered of an identity.
--
-- KEYS[1]  the identity
--
-- Answers 0 if nothing is; l and for how long somebody has it; c and with which fingerprint and when it was completed.
local known, failed = record(KEYS[1])
if not known then
    return {failed or 0}
end
local state, ends = byte(known, 17), tonumber(sub(known, 18, 30))
if state == FREE then
    return {0}
end
if state ~= LEASED or not ends then
    return {sub(known, 17)}
end
local left = ends - math.floor(clock() / 1000)
return {left > 0 and 'l' .. format('%.0f', left) or 0}
