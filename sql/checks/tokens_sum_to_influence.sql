-- offending rows: exact influences that their tokens do not sum to, or that have no tokens
with summed as (
    select query_id, sequence_id, sum(influence) as tokens, sum(abs(influence)) as size
    from run_token_influences
    group by query_id, sequence_id
)
select i.query_id, i.sequence_id, i.influence, s.tokens
from run_influences i
left join summed s using (query_id, sequence_id)
where i.exact and (s.tokens is null or abs(s.tokens - i.influence) > 1e-6 * s.size)
