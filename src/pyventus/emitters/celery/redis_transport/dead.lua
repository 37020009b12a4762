-- Looks for workers without a heartbeat, at most once in a while for all who look.
--
-- A worker is dead once two looks have found no heartbeat: after a Redis that hung or was restarted all of them seem to
-- have stopped, and those that live need a moment to say so.
--
-- KEYS: sessions, suspects, the mark of the last look
-- ARGV: what stands before a session in the key of its heartbeat, milliseconds between two looks
-- Returns the dead, each with its queues.

redis.call('HDEL', KEYS[1], '') -- A write that a full Redis lets pass, and all others after it.
if not redis.call('SET', KEYS[3], '', 'NX', 'PX', ARGV[2]) then return {} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local dead = {}
local sessions = redis.call('HGETALL', KEYS[1])
for number = 1, #sessions, 2 do
    local session = sessions[number]
    local since = redis.call('ZSCORE', KEYS[2], session)
    if redis.call('EXISTS', ARGV[1] .. session) == 1 then
        redis.call('ZREM', KEYS[2], session)
    elseif not since then
        redis.call('ZADD', KEYS[2], now, session)
    elseif now - since >= tonumber(ARGV[2]) then
        dead[#dead + 1] = session
        dead[#dead + 1] = sessions[number + 1]
    end
end
return dead
