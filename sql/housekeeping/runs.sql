-- grain: one row per complete run, the latest first, with how many queries it answered
with asked as (
    select run_id, count(*) as n_queries
    from run_queries
    group by run_id
)
select
    r.run_id,
    r.finished_at,
    r.method,
    r.model,
    coalesce(a.n_queries, 0) as n_queries,
    r.n_sequences,
    r.stages,
    r.factors_id,
    r.parameters,
    r.model_fingerprint,
    r.corpus_fingerprint,
    r.code_revision
from runs r
left join asked a on a.run_id = r.run_id
order by r.finished_at desc, r.run_id
