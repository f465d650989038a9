-- What is remembered of an identity.
--
-- KEYS[1]  the identity
--
-- Answers 0 if nothing is; l and for how long somebody has it; c and when and with which fingerprint it was completed.
local known, failed = record(KEYS[1])
if not known then
    return {failed or 0}
end
local state, ends = string.sub(known, 17, 17), tonumber(string.sub(known, 18, 30))
if state == 'f' then
    return {0}
end
if state ~= 'l' or not ends then
    return {string.sub(known, 17)}
end
local left = ends - math.floor(clock() / 1000)
return {left > 0 and 'l' .. string.format('%.0f', left) or 0}
