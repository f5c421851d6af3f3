-- grain: one row per (query, sequence, step): how far both influences at a step are from their limit, over the tokens
-- errors are lengths of the difference relative to that of the limit; at rise 0 they are 0
-- `sum_error` is how far the output influences sum to another influence than the stored one, relative to it
with responses as (
    select *
    from token_responses
    where run_id = $run and list_contains($queries, query_id)
),
together as (
    select
        r.query_id,
        r.sequence_id,
        r.rise,
        r.alpha,
        sum(r.output_influence) as summed,
        sqrt(sum(pow(r.output_influence - l.output_influence, 2)) / nullif(sum(pow(l.output_influence, 2)), 0))
            as output_error,
        sqrt(sum(pow(r.input_influence - l.input_influence, 2)) / nullif(sum(pow(l.input_influence, 2)), 0))
            as input_error
    from responses r
    join responses l
        on l.query_id = r.query_id and l.sequence_id = r.sequence_id and l.position = r.position and l.rise = 0
    group by r.query_id, r.sequence_id, r.rise, r.alpha
)
select
    t.query_id,
    t.sequence_id,
    t.rise,
    t.alpha,
    t.output_error,
    t.input_error,
    abs(t.summed - i.influence) / nullif(abs(i.influence), 0) as sum_error
from together t
join influences i on i.run_id = $run and i.query_id = t.query_id and i.sequence_id = t.sequence_id
join runs r on r.run_id = i.run_id and r.method = i.method
order by t.rise, t.query_id, t.sequence_id
