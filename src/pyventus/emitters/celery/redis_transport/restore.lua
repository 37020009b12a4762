-- Puts entries that are in flight back into their queues, each if it is still there.
--
-- KEYS: in flight, and perhaps the heartbeat of a worker that must be dead
-- ARGV: RPUSH or LPUSH, then triples of id, queue and bytes
-- Returns how many.

if KEYS[2] and redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
local restored = 0
for number = 2, #ARGV, 3 do
    if redis.call('HDEL', KEYS[1], ARGV[number]) == 1 then
        redis.call(ARGV[1], ARGV[number + 1], ARGV[number + 2])
        restored = restored + 1
    end
end
return restored
