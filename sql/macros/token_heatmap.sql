-- grain: one row per position of one sequence: its influence on a query, summed over layers
-- influence stands at the position that predicts next_token; empty for a sequence that was not scored exactly
create or replace macro token_heatmap(query, sequence, run := 'latest') as table
with summed as (
    select t.position, any_value(t.token) as token, sum(t.influence) as influence
    from token_influences t
    join chosen_run(query, run) c on c.run_id = t.run_id
    where t.query_id = query and t.sequence_id = sequence
    group by t.position
)
select position, token, lead(token) over (order by position) as next_token, influence
from summed
order by position
