-- grain: one row per (retraining without a query's first sequences, query): how much costlier the query became, in nats
-- not every query under every such retraining: the one alone whose first sequences the retraining lacks
with whole as (
    select query_id, loss from retrainings where study_id = $study and retraining = 'full' and seed = $seed
),
asked as (
    select unnest($retrainings) as retraining, unnest($queries) as query_id
)
select a.retraining, a.query_id, r.loss - w.loss as rise, (r.loss - w.loss) / q.n_completion_tokens as rise_per_token
from asked a
join retrainings r on r.retraining = a.retraining and r.query_id = a.query_id
join whole w on w.query_id = a.query_id
join run_queries q on q.query_id = a.query_id
where r.study_id = $study and r.seed = $seed and q.run_id = $run
order by a.retraining
