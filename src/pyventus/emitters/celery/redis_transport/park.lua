-- Keeps a message until it is due, by the server's clock, and wakes a worker if it is the first to be due.
--
-- KEYS: delayed messages of the queue, queues by their first due message, wake-ups, and perhaps: in flight
-- ARGV: milliseconds, the queue, 32 bytes that are unique and the message, and perhaps its id in flight

if KEYS[4] and redis.call('HDEL', KEYS[4], ARGV[4]) == 0 then return 0 end
local time = redis.call('TIME')
local due = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1]
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
redis.call('ZADD', KEYS[1], due, ARGV[3])
redis.call('ZADD', KEYS[2], 'LT', due, ARGV[2])
if not first or due < tonumber(first) then
    redis.call('LPUSH', KEYS[3], '')
    redis.call('LTRIM', KEYS[3], 0, 0)
end
return 1
