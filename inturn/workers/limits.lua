-- Who may call a provider now, and when the others may: one script for all workers, by Redis' own clock.
--
-- KEYS[1]  inturn:limit:<provider>          hash: when the next call is due, by pool and measure; the line's shift, front and again
-- KEYS[2]  inturn:limit:<provider>:slots    sorted set: turns that stand in the common line, by their place in it (ms)
-- KEYS[3]  inturn:limit:<provider>:flight   sorted set: turns whose call is under way, by when it must have ended (ms)
-- KEYS[4]  inturn:limit:<provider>:chat     sorted set: turns with a moment out of chat's reserve, by that moment (ms)
--
-- ARGV[1]  JSON: {requests, tokens: per minute, or 0; flight: at most, or 0; share: chat's, of all of them, less than 1;
--          call: how long one takes (ms); hold: the longest that one may take (ms);
--          asks: [{turn, chat, tokens, draw: 0 to 1}], ended: [{turn, chat, tokens: more than was asked for}]}
-- Returns for each ask how many milliseconds it has to wait: 0 may call, and is counted.
--
-- Rates are kept by the generic cell rate algorithm: a pool remembers when its next call is due, and each call moves that
-- by as much time as it takes up. There are three:
--
--   called  the calls that were made, of the whole limit. Nobody in the line calls before its time has come.
--   chat    chat's reserve, at its share of the limit. Who has a moment out of it calls then, whatever others did: the
--           line waits for as much longer.
--   common  the line: its end, at the whole limit. A place in it is promised a minute ahead, when nobody knows what chat
--           will take of that minute. So places are told by a clock of the line's own, which is behind ours by `shift`:
--           whoever comes at the promised moment and finds that `called` is not as far is put off, and by the shift all
--           those behind it are, too. `front` is the last place that anybody came with; who comes later than those
--           behind it puts off nobody. None that are put off are told the same moment (`again` is the next).
--
-- Chat takes out of its reserve or stands in the line, whichever is sooner; batch stands in the line.

local AHEAD_MS = 500      -- how far a place is ahead of its time, so that nothing is lost when a turn comes a little late
local BURST_MS = 700      -- how far calls may be ahead of theirs: a bit more than one in a hundred of a minute's
local CHAT_BURST_MS = 1000  -- the same for chat that comes too late for its moment
local LATE_CHAT_MS = 500  -- what is too late: a reserve that has gathered for longer would be a burst
local HORIZON_MS = 60000  -- who would wait longer reserves nothing, and asks again
local LATE_MS = 60000     -- for as long a reserved moment is kept for a turn that does not come
local MINUTE_MS = 60000

local limits = cjson.decode(ARGV[1])
local state, slots, flight, reserve = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local measures = {}
for _, measure in ipairs({'requests', 'tokens'}) do
    if limits[measure] > 0 then table.insert(measures, measure) end
end

local function moment(name)
    return tonumber(redis.call('HGET', state, name)) or 0
end

local shift = moment('shift')

-- How long one call of so many tokens takes up the whole limit, by measure.
local function cost(measure, tokens)
    local count = measure == 'tokens' and tokens or 1
    return count * MINUTE_MS / limits[measure]
end

-- When a pool is due, by its own clock.
local function due(pool, at)
    for _, measure in ipairs(measures) do at = math.max(at, moment(pool .. ':' .. measure)) end
    return at
end

-- A part of 1 is the whole limit: a call takes up a pool that has less of it for longer.
local function take(pool, at, tokens, part)
    for _, measure in ipairs(measures) do
        local name = pool .. ':' .. measure
        redis.call('HSET', state, name, math.max(at, moment(name)) + cost(measure, tokens) / part)
    end
end

-- The end of the line, by its clock. Where nobody stands in it, it begins when what was called is paid for.
local function end_of_line()
    local at = due('common', now - shift)
    if redis.call('ZCARD', slots) > 0 then return at end
    return math.max(at, due('called', now) - shift)
end

-- Nobody calls before `at`: who stands at this place is put off until then, or until those are through that were before.
local function put_off(ask, place, at)
    local again = math.max(moment('again'), at)
    local longest = 0
    for _, measure in ipairs(measures) do longest = math.max(longest, cost(measure, ask.tokens)) end
    redis.call('HSET', state, 'again', again + longest)
    if place >= moment('front') then
        shift = again - place
        redis.call('HSET', state, 'shift', shift, 'front', place)
    end
    return again - now
end

local function wait_in_line(ask)
    local place = tonumber(redis.call('ZSCORE', slots, ask.turn))
    local was_passed = place and place < moment('front')
    if not place then
        local at = end_of_line()
        if at + shift - now > HORIZON_MS then return HORIZON_MS * (0.5 + ask.draw / 2) end
        take('common', at, ask.tokens, 1)
        place = math.max(now - shift, at - AHEAD_MS)
        redis.call('ZADD', slots, place, ask.turn)
    end
    if place + shift > now and not was_passed then return place + shift - now end
    local at = due('called', now) - BURST_MS
    if at > now then return put_off(ask, place, at) end
    if place > moment('front') then redis.call('HSET', state, 'front', place) end
    return 0
end

-- The same for chat's reserve; nil where the line is sooner.
local function wait_in_reserve(ask)
    local at = tonumber(redis.call('ZSCORE', reserve, ask.turn))
    if not at then
        if redis.call('ZSCORE', slots, ask.turn) then return nil end
        at = due('chat', now)
        if at > end_of_line() + shift or at - now > HORIZON_MS then return nil end
        take('chat', at, ask.tokens, limits.share)
        at = math.max(now, at - AHEAD_MS)
        redis.call('ZADD', reserve, at, ask.turn)
    end
    if now - at <= LATE_CHAT_MS then return math.max(0, at - now) end
    return math.max(0, due('called', now) - CHAT_BURST_MS - now)
end

local function wait_for_rate(ask)
    local wait
    if ask.chat and limits.share > 0 then wait = wait_in_reserve(ask) end
    return wait or wait_in_line(ask)
end

-- How long an ask waits for one of the calls under way to end: those who wait share what becomes free. Chat's part of the
-- places is not lent to batch, as no call is taken back.
local function wait_for_room(ask)
    if limits.flight <= 0 then return 0 end
    local most = ask.chat and limits.flight or math.max(1, math.floor(limits.flight * (1 - limits.share)))
    if redis.call('ZCARD', flight) < most then return 0 end
    local waiting = redis.call('ZCARD', slots) + redis.call('ZCARD', reserve)
    return math.min(HORIZON_MS, 100 + limits.call * waiting / most) * (0.5 + ask.draw / 2)
end

-- Whose moment has come, and who has to wait for room, keeps it.
local function keep(ask)
    if redis.call('ZSCORE', reserve, ask.turn) then
        redis.call('ZADD', reserve, now, ask.turn)
    else
        redis.call('ZADD', slots, now - shift, ask.turn)
    end
end

local function begin(ask)
    redis.call('ZREM', slots, ask.turn)
    redis.call('ZREM', reserve, ask.turn)
    take('called', now, ask.tokens, 1)
    redis.call('ZADD', flight, now + limits.hold, ask.turn)
end

-- Tokens that were asked for and not used go back to the end of the line; what was used besides puts the line off.
local function correct(call)
    if limits.tokens <= 0 or call.tokens == 0 then return end
    local more = cost('tokens', call.tokens)
    redis.call('HSET', state, 'called:tokens', math.max(now, moment('called:tokens')) + more)
    if call.chat and limits.share > 0 then
        redis.call('HSET', state, 'chat:tokens', math.max(now, moment('chat:tokens')) + more / limits.share)
    elseif more < 0 then
        redis.call('HSET', state, 'common:tokens', math.max(now - shift, moment('common:tokens')) + more)
    end
end

for _, call in ipairs(limits.ended) do
    redis.call('ZREM', flight, call.turn)
    correct(call)
end

redis.call('ZREMRANGEBYSCORE', flight, '-inf', now)
redis.call('ZREMRANGEBYSCORE', reserve, '-inf', now - LATE_MS)
redis.call('ZREMRANGEBYSCORE', slots, '-inf', now - shift - LATE_MS)

local waits = {}
for _, ask in ipairs(limits.asks) do
    local wait = wait_for_rate(ask)
    if wait <= 0 then
        wait = wait_for_room(ask)
        if wait <= 0 then begin(ask) else keep(ask) end
    end
    table.insert(waits, math.ceil(wait))
end
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, limits.hold + HORIZON_MS + LATE_MS) end
return waits
