-- Who may call a provider now, and when the others may: one script for all workers, by Redis' own clock.
--
-- KEYS[1]  inturn:limit:<provider>          hash: when the next call is due, by pool and measure
-- KEYS[2]  inturn:limit:<provider>:slots    sorted set: turns that have a moment reserved, by that moment (ms)
-- KEYS[3]  inturn:limit:<provider>:flight   sorted set: turns whose call is under way, by when it must have ended (ms)
--
-- ARGV[1]  JSON: {requests, tokens: per minute, or 0; flight: at most, or 0; share: chat's, of all of them;
--          call: how long one takes (ms); hold: the longest that one may take (ms);
--          asks: [{turn, chat, tokens, draw: 0 to 1}], ended: [{turn, chat, tokens: more than was asked for}]}
-- Returns for each ask how many milliseconds it has to wait: 0 may call, and is counted.
--
-- Rates are kept by the generic cell rate algorithm: a pool remembers when its next call is due, and each call moves that
-- by as much time as it takes up. Chat has a pool of its own beside the common one, and takes whichever is due sooner.

local BURST_MS = 500      -- how far a call may be ahead of its moment: less than one in a hundred of a minute's calls
local HORIZON_MS = 60000  -- who would wait longer reserves nothing, and asks again
local LATE_MS = 60000     -- for as long a reserved moment is kept for a turn that does not come
local MINUTE_MS = 60000

local limits = cjson.decode(ARGV[1])
local state, slots, flight = KEYS[1], KEYS[2], KEYS[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function moment(name)
    return tonumber(redis.call('HGET', state, name)) or 0
end

local function part(pool)
    return pool == 'chat' and limits.share or 1 - limits.share
end

-- How long one call of so many tokens takes up the pool, by measure.
local function cost(measure, pool, tokens)
    local count = measure == 'tokens' and tokens or 1
    return count * MINUTE_MS / (limits[measure] * part(pool))
end

local function measures()
    local found = {}
    for _, measure in ipairs({'requests', 'tokens'}) do
        if limits[measure] > 0 then table.insert(found, measure) end
    end
    return found
end

local function due(pool)
    local at = now
    for _, measure in ipairs(measures()) do
        at = math.max(at, moment(pool .. ':' .. measure))
    end
    return at
end

local function take(pool, at, tokens)
    for _, measure in ipairs(measures()) do
        local from = math.max(at, moment(pool .. ':' .. measure))
        redis.call('HSET', state, pool .. ':' .. measure, from + cost(measure, pool, tokens))
    end
end

local function pool_of(ask)
    if not ask.chat or limits.share <= 0 then return 'common' end
    if limits.share >= 1 then return 'chat' end
    return due('chat') <= due('common') and 'chat' or 'common'
end

-- How long an ask waits for its moment; 0: it has come.
local function wait_for_rate(ask)
    local reserved = tonumber(redis.call('ZSCORE', slots, ask.turn))
    if reserved then return math.max(0, reserved - now) end
    local pool = pool_of(ask)
    local at = due(pool)
    if at - now > HORIZON_MS then return HORIZON_MS * (0.5 + ask.draw / 2) end
    take(pool, at, ask.tokens)
    at = math.max(now, at - BURST_MS)
    redis.call('ZADD', slots, at, ask.turn)
    return at - now
end

-- How long an ask waits for one of the calls under way to end: those who wait share what becomes free.
local function wait_for_room(ask)
    if limits.flight <= 0 then return 0 end
    local most = ask.chat and limits.flight or math.max(1, math.floor(limits.flight * (1 - limits.share)))
    if redis.call('ZCARD', flight) < most then return 0 end
    local waiting = redis.call('ZCARD', slots)
    return math.min(HORIZON_MS, 100 + limits.call * waiting / most) * (0.5 + ask.draw / 2)
end

for _, call in ipairs(limits.ended) do
    redis.call('ZREM', flight, call.turn)
    if limits.tokens > 0 and call.tokens ~= 0 then
        local pool = call.chat and limits.share > 0 and 'chat' or 'common'
        if limits.share >= 1 then pool = 'chat' end
        local name = pool .. ':tokens'
        redis.call('HSET', state, name, math.max(now, moment(name)) + cost('tokens', pool, call.tokens))
    end
end

redis.call('ZREMRANGEBYSCORE', flight, '-inf', now)
redis.call('ZREMRANGEBYSCORE', slots, '-inf', now - LATE_MS)

local waits = {}
for _, ask in ipairs(limits.asks) do
    local wait = wait_for_rate(ask)
    if wait <= 0 then
        wait = wait_for_room(ask)
        if wait <= 0 then
            redis.call('ZREM', slots, ask.turn)
            redis.call('ZADD', flight, now + limits.hold, ask.turn)
        else
            redis.call('ZADD', slots, now, ask.turn)
        end
    end
    table.insert(waits, math.ceil(wait))
end
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, limits.hold + HORIZON_MS + LATE_MS) end
return waits
