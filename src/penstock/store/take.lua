-- Takes slices of limits that gateways share: for each rule, states what this writer holds and gives it more.
-- In: KEYS: the epoch, the writer's last number, one hash per rule; ARGV: writer, number, asks as JSON, SETTLE_S,
-- SEED_S, SHARE_OF_LEFT.
-- Out: {seconds, microseconds, epoch, {status, given, left, whole_ms, fits_ms...} per rule}; fits_ms -1: it fits.
-- A field of a rule's hash is a writer, its value "until amount until amount..."; the field * is the epoch in which
-- it was seeded.
-- The meaning of every ask and answer: penstock/wire/slices.py.  The same in Python: penstock/sim/slices.py.

local writer, number, asks = ARGV[1], tonumber(ARGV[2]), cjson.decode(ARGV[3])
local settle_s, seed_s, share = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

-- Somebody else may have written here: of our own two keys that is forgetting, and mended as such; what is no book of a
-- rule is left for a person to look at, and that rule alone cannot be granted of.
local function is_of_type(key, kind)
  local found = redis.call('TYPE', key).ok
  return found == kind or found == 'none'
end

-- What was long on its way must not replace what was said since.
if not is_of_type(KEYS[2], 'string') then redis.call('DEL', KEYS[2]) end
if number <= (tonumber(redis.call('GET', KEYS[2]) or 0) or 0) then return redis.error_reply('STALE an older statement') end
redis.call('SET', KEYS[2], ARGV[2], 'EX', 3600)
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6

local function text(number) return string.format('%.0f', number) end

-- Another server process may have forgotten some or all; which one answers is part of the epoch.  One that begins in
-- the future is over, too: the clock was set back, and nobody should wait until it has caught up.
local info = redis.pcall('INFO', 'server')
local run = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or 'unknown'
local known = is_of_type(KEYS[1], 'hash') and redis.call('HMGET', KEYS[1], 'run', 'since') or {}
local since = tonumber(known[2] or nil)
if known[1] ~= run or since == nil or since > now then
  since = now
  if not known[1] then redis.call('DEL', KEYS[1]) end
  redis.call('HSET', KEYS[1], 'run', run, 'since', string.format('%.6f', now))
end

local epoch = run .. ' ' .. string.format('%.6f', since)

local function parse(record)
  local live, entries = 0, {}
  for till, amount in string.gmatch(record, '(%d+) (%d+)') do
    till, amount = tonumber(till), tonumber(amount)
    if till > now then
      live = live + amount
      entries[#entries + 1] = {till, amount}
    end
  end
  return live, entries
end

-- What the ledger has of writers that may be gone; once in an epoch.
local function seed(key, seeds, till)
  for other, used in pairs(seeds) do
    local record = redis.call('HGET', key, other)
    if used > (record and (parse(record)) or 0) then
      redis.call('HSET', key, other, text(till) .. ' ' .. text(used))
    end
  end
  redis.call('HSET', key, '*', epoch)
end

local function others_of(key)
  local total, entries = 0, {}
  local all = redis.call('HGETALL', key)
  for place = 1, #all, 2 do
    local other = all[place]
    if other ~= writer and other ~= '*' then
      local live, found = parse(all[place + 1])
      total = total + live
      for _, entry in ipairs(found) do entries[#entries + 1] = entry end
      if live == 0 then redis.call('HDEL', key, other) end
    end
  end
  return total, entries
end

local function fits_ms(need, left, entries, ask, window_end)
  if window_end > 0 then return math.ceil((window_end - now) * 1000) end
  for _, entry in ipairs(entries) do
    left = left + entry[2]
    if left >= need then return math.ceil((entry[1] - now) * 1000) end
  end
  return math.ceil(ask[10] * 1000)
end

local function take(key, ask)
  local amount, slots, rest, free = ask[2], ask[3], ask[4], ask[5]
  local needs, extra, begin, window_end, hold_s, from, seeds = ask[6], ask[7], ask[8], ask[9], ask[10], ask[11], ask[12]
  if window_end > 0 and (now < begin or now >= window_end) then return {1, 0, 0, 0} end
  if not is_of_type(key, 'hash') then return {3, 0, 0, 0} end
  local till = window_end > 0 and window_end or math.ceil(now + hold_s)
  local waits = now < since + settle_s
  if from > 0 and from < since and redis.call('HGET', key, '*') ~= epoch then
    if type(seeds) == 'table' then seed(key, seeds, till) else waits = waits or now < since + seed_s end
  end

  local others, entries = others_of(key)
  local record, mine, last = {}, rest, till
  for _, slot in ipairs(slots) do
    if slot[1] > now then
      mine = mine + slot[2]
      last = math.max(last, slot[1])
      record[#record + 1] = text(slot[1]) .. ' ' .. text(slot[2])
      entries[#entries + 1] = slot
    end
  end

  local left, given, unmet = amount - others - mine, 0, {}
  local room = waits and 0 or math.max(0, left)
  for place, need in ipairs(needs) do
    local more = math.max(0, need - free)
    if more <= room then
      free = free - (need - more)
      room, given = room - more, given + more
    else
      unmet[place] = need
    end
  end
  local bonus = math.min(extra, math.floor(room / share))
  given, left = given + bonus, math.max(0, left - given - bonus)
  if rest + given > 0 then
    record[#record + 1] = text(till) .. ' ' .. text(rest + given)
    entries[#entries + 1] = {till, rest + given}
  end

  if #record > 0 then redis.call('HSET', key, writer, table.concat(record, ' ')) else redis.call('HDEL', key, writer) end
  -- A day more than it counts: a clock that is set back finds what was.
  local expires = math.max(last, till) + (window_end > 0 and 86400 or 60)
  if now + redis.call('TTL', key) < expires then redis.call('EXPIREAT', key, text(expires)) end

  table.sort(entries, function(one, other) return one[1] < other[1] end)
  local whole = #entries > 0 and math.ceil((entries[#entries][1] - now) * 1000) or 0
  local answer = {waits and 2 or 0, given, left, whole}
  for place, need in ipairs(needs) do
    answer[4 + place] = unmet[place] and fits_ms(need, left, entries, ask, window_end) or -1
  end
  return answer
end

local answers = {time[1], time[2], epoch}
for place, ask in ipairs(asks) do answers[3 + place] = take(KEYS[2 + place], ask) end
return answers
