-- Says that a worker lives, and puts back what was moved out of its queues and then taken by nobody.
--
-- KEYS: heartbeat, sessions, suspects, then pairs of a landing list and its queue
-- ARGV: session, milliseconds that it counts as alive, its queues
-- Returns 1 if the session was not registered.

-- PEXPIRE comes first: with it the script counts as writing, and a full Redis then lets all else pass.
if redis.call('PEXPIRE', KEYS[1], ARGV[2]) == 0 then redis.call('SET', KEYS[1], '', 'PX', ARGV[2]) end
redis.call('ZREM', KEYS[3], ARGV[1])
for number = 4, #KEYS, 2 do
    while redis.call('LMOVE', KEYS[number], KEYS[number + 1], 'LEFT', 'RIGHT') do end
end
return redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
