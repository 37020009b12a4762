-- Moves messages that are due into their queues.
--
-- KEYS: queues by their first due message
-- ARGV: what stands before a queue in the key of its delayed messages, how many at most of each queue
-- Returns the milliseconds until the next is due, or -1.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, queue in ipairs(redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE')) do
    local delayed = ARGV[1] .. queue
    for _, member in ipairs(redis.call('ZRANGE', delayed, '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[2])) do
        redis.call('ZREM', delayed, member)
        redis.call('LPUSH', queue, string.sub(member, 33))
    end
    local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]
    if first then redis.call('ZADD', KEYS[1], first, queue) else redis.call('ZREM', KEYS[1], queue) end
end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
return first and math.max(0, first - now) or -1
