-- Claims identities, each unless it was completed or a lease on it runs.
--
-- KEYS       the identities; one that occurs twice is claimed once
-- ARGV[1]    how long a lease runs, ms
-- ARGV[2]    how long a key is kept, ms; not shorter than the lease
-- ARGV[2+i]  who asks for the identity i: unique to the request, so that one that is sent twice is told of one lease
--
-- Answers for each: a and its token, l and for how long somebody has it, c and with which fingerprint and when it was completed.
local micros = clock()
local now = math.floor(micros / 1000)
local token = format('%016.0f', micros)
local leased = 'l' .. format('%013.0f', now + tonumber(ARGV[1]))
local new, acquired = token .. leased, 'a' .. token

local function judged(key, asks, refused)
    local known, failed = record(key)
    if not known then
        return failed or refused
    end
    local state, ends = byte(known, 17), tonumber(sub(known, 18, 30))
    if state == COMPLETED then
        return sub(known, 17)
    elseif state == LEASED and ends > now then
        if sub(known, 31) == asks then
            return 'a' .. sub(known, 1, 16)
        end
        return 'l' .. format('%.0f', ends - now)
    end
    -- The clock alone would do, were it never set back; the last token alone, were it never forgotten.
    local token = format('%016.0f', math.max(micros, tonumber(sub(known, 1, 16)) + 1))
    local set = try('SET', key, token .. leased .. asks, 'PX', ARGV[2])
    return set.err and set or 'a' .. token
end

local answers = {}
for i, key in ipairs(KEYS) do
    local asks = ARGV[2 + i]
    local set = try('SET', key, new .. asks, 'NX', 'PX', ARGV[2])
    answers[i] = set and set.ok and acquired or judged(key, asks, set)
end
return answers
