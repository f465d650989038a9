-- Lets a lease run anew. One that has run out is still its owner's as long as nobody else took it.
--
-- KEYS[1]  the identity
-- ARGV[1]  how long the key is kept, ms; not shorter than the lease
-- ARGV[2]  the token
-- ARGV[3]  how long the lease runs, ms
--
-- Answers 1, or 0 if the lease was lost.
local known, failed = record(KEYS[1])
if not known or sub(known, 1, 17) ~= ARGV[2] .. 'l' then
    return {failed or 0}
end
local ends = format('%013.0f', math.floor(clock() / 1000) + tonumber(ARGV[3]))
return {keep(KEYS[1], ARGV[2] .. 'l' .. ends .. sub(known, 31), ARGV[1])}
