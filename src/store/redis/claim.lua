-- Claims identities, each unless it was completed or a lease on it runs.
--
-- KEYS     the identities
-- ARGV[1]  how long a lease runs, ms
-- ARGV[2]  how long a key is kept, ms; not shorter than the lease
-- ARGV[3]  who asks: unique to the call, so that a call that is sent twice is told of one lease
--
-- Answers for each: a and its token, l and for how long somebody has it, c and with which fingerprint and when it was completed.
local micros = clock()
local now = math.floor(micros / 1000)
local token = format('%016.0f', micros)
local leased = 'l' .. format('%013.0f', now + tonumber(ARGV[1])) .. ARGV[3]
local value, acquired = token .. leased, 'a' .. token

local function judged(key, refused)
    local known, failed = record(key)
    if not known then
        return failed or refused
    end
    local state, ends = byte(known, 17), tonumber(sub(known, 18, 30))
    if state == LEASED and ends and ends > now then
        if sub(known, 31) == ARGV[3] then
            return 'a' .. sub(known, 1, 16)
        end
        return 'l' .. format('%.0f', ends - now)
    end
    local last = tonumber(sub(known, 1, 16))
    if not last or (state ~= LEASED and state ~= FREE) then
        return sub(known, 17)
    end
    -- The clock alone would do, were it never set back; the last token alone, were it never forgotten.
    local token = format('%016.0f', math.max(micros, last + 1))
    local set = try('SET', key, token .. leased, 'PX', ARGV[2])
    return set.err and set or 'a' .. token
end

local answers = {}
for i, key in ipairs(KEYS) do
    local set = try('SET', key, value, 'NX', 'PX', ARGV[2])
    answers[i] = set and set.ok and acquired or judged(key, set)
end
return answers
