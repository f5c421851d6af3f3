-- grain: one row per (query, sequence): rank correlations over its predicted tokens between the forms of influence
-- equal values share the mean of their ranks
with tokens as (
    select query_id, sequence_id, position, update_influence, output_influence, input_influence, read_influence
    from token_forms(run := $run)
    where list_contains($queries, query_id) and output_influence is not null
),
ranked as (
    select
        query_id,
        sequence_id,
        rank() over (pair order by update_influence) + count(*) over (pair_update) / 2 as "update",
        rank() over (pair order by output_influence) + count(*) over (pair_output) / 2 as output,
        rank() over (pair order by input_influence) + count(*) over (pair_input) / 2 as input,
        rank() over (pair order by read_influence) + count(*) over (pair_read) / 2 as read
    from tokens
    window
        pair as (partition by query_id, sequence_id),
        pair_update as (partition by query_id, sequence_id, update_influence),
        pair_output as (partition by query_id, sequence_id, output_influence),
        pair_input as (partition by query_id, sequence_id, input_influence),
        pair_read as (partition by query_id, sequence_id, read_influence)
)
select
    query_id,
    sequence_id,
    count(*) as n_tokens,
    corr("update", output) as update_output,
    corr("update", input) as update_input,
    corr(output, input) as output_input,
    corr(read, input) as read_input
from ranked
group by query_id, sequence_id
having count(*) > 2
order by query_id, sequence_id
