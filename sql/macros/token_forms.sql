-- grain: one row per (query, sequence, position): three influences of one token, of the sequences that have all of them
-- the update that teaches a token stands at the position before it; `read_influence` is the update at its own position,
-- which predicts the token after it; nothing predicts the first token
create or replace macro token_forms(run := 'latest') as table
with named as (
    from chosen_whole_run(run)
),
responses as (
    select r.query_id, r.sequence_id, r.position, r.token_id, r.output_influence, r.input_influence
    from token_responses r
    join named n on n.run_id = r.run_id
    where r.rise = 0
),
pairs as (
    select distinct query_id, sequence_id from responses
),
updates as (
    select t.query_id, t.sequence_id, t.position, any_value(t.token) as token, sum(t.influence) as influence
    from token_influences t
    join named n on n.run_id = t.run_id
    join pairs p on p.query_id = t.query_id and p.sequence_id = t.sequence_id
    group by t.query_id, t.sequence_id, t.position
)
select
    r.query_id,
    r.sequence_id,
    r.position,
    r.token_id,
    u.token,
    lag(u.influence) over (partition by r.query_id, r.sequence_id order by r.position) as update_influence,
    r.output_influence,
    r.input_influence,
    u.influence as read_influence
from responses r
join updates u on u.query_id = r.query_id and u.sequence_id = r.sequence_id and u.position = r.position
order by r.query_id, r.sequence_id, r.position
