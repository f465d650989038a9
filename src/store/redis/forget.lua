-- Forgets that an identity was completed.
--
-- KEYS[1]  the identity
-- ARGV[1]  how long its token is kept, ms
--
-- Answers 1, or 0 if it was not completed.
local known, failed = record(KEYS[1])
if not known or byte(known, 17) ~= COMPLETED then
    return {failed or 0}
end
return {keep(KEYS[1], sub(known, 1, 16) .. 'f', ARGV[1])}
