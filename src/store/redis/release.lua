-- Gives an identity back. Released twice is released: the first reply was lost.
--
-- KEYS[1]  the identity
-- ARGV[1]  how long its token is kept, ms
-- ARGV[2]  the token
--
-- Answers 1, or 0 if the lease was lost.
local known, failed = record(KEYS[1])
if not known or sub(known, 1, 16) ~= ARGV[2] or byte(known, 17) == COMPLETED then
    return {failed or 0}
end
return {keep(KEYS[1], ARGV[2] .. 'f', ARGV[1])}
