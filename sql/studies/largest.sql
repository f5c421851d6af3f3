-- grain: one row per query: how many sequences were scored, how many raised it, and the influences of those, falling
-- of all scored sequences, or of the uniform sample of the corpus where the run has one: a filter's choice has no tail
with sampled as (
    select c.query_id, c.sequence_id
    from candidates c
    where c.run_id = $run and c.filter = 'uniform'
),
scored as (
    select
        i.query_id,
        i.influence,
        s.sequence_id is not null as is_sampled,
        count(s.sequence_id) over (partition by i.query_id) > 0 as has_sample
    from influences i
    join runs r on r.run_id = i.run_id and r.method = i.method
    left join sampled s on s.query_id = i.query_id and s.sequence_id = i.sequence_id
    where i.run_id = $run
),
kept as (
    select * from scored where is_sampled or not has_sample
)
select
    query_id,
    any_value(has_sample) as is_sample,
    count(*) as n_sample,
    count(*) filter (where influence > 0) as n_positive,
    list(influence order by influence desc) filter (where influence > 0) as positive
from kept
group by query_id
order by query_id
