-- Forgets a worker that is dead and has nothing left, and puts back what was moved out of its queues.
--
-- KEYS: heartbeat, in flight, sessions, suspects, then pairs of a landing list and its queue
-- ARGV: session

redis.call('HDEL', KEYS[3], '') -- A write that a full Redis lets pass, and all others after it.
for number = 5, #KEYS, 2 do
    while redis.call('LMOVE', KEYS[number], KEYS[number + 1], 'LEFT', 'RIGHT') do end
end
if redis.call('EXISTS', KEYS[1], KEYS[2]) == 0 then
    redis.call('HDEL', KEYS[3], ARGV[1])
    redis.call('ZREM', KEYS[4], ARGV[1])
end
