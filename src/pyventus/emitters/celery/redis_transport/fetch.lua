-- Takes up to so many entries from the lists of a worker, records them as in flight, and forgets what it has finished.
--
-- KEYS: in flight, sessions, then pairs of a landing list and its queue, the first first
-- ARGV: session, the number of the first entry, how many, then the ids of those that are finished
-- Returns the place of the queue of each entry, in one text, and the entries, which Lua would take longer to join than
-- clients to read one by one; nothing if the session is not registered.

for first = 4, #ARGV, 1000 do
    redis.call('HDEL', KEYS[1], unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then return false end

local first, room = tonumber(ARGV[2]), tonumber(ARGV[3])
local places, found = {}, {}
for number = 3, #KEYS do
    if room == 0 then break end
    local queue = KEYS[number + number % 2]
    local records = {}
    -- RPOP comes first: with it the script counts as writing, and a full Redis then lets HSET pass.
    for _, entry in ipairs(redis.call('RPOP', KEYS[number], room) or {}) do
        records[#records + 1], records[#records + 2] = first .. ':' .. queue, entry
        found[#found + 1] = entry
        places[#found] = math.floor((number - 3) / 2)
        first, room = first + 1, room - 1
    end
    -- Before the next list, which may not be one. Lua can pass some thousand values at once, and a hundred entries are
    -- the most that is asked for.
    if records[1] then redis.call('HSET', KEYS[1], unpack(records)) end
end
return {table.concat(places, ' '), found}
