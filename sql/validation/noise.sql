-- grain: one row per study: how far the queries' losses vary over subsets and over orders of all sequences, in nats
-- not a standard deviation where there is one retraining: null
with spreads as (
    select
        query_id,
        stddev_samp(loss) filter (where list_contains($subsets, retraining)) as over_subsets,
        stddev_samp(loss) filter (where retraining = 'full') as over_seeds,
        avg(loss) filter (where retraining = 'full' and seed = $seed) as whole
    from retrainings
    where study_id = $study
    group by query_id
)
select
    median(over_subsets) as over_subsets,
    median(over_seeds) as over_seeds,
    max(abs(whole + q.log_probability)) as difference
from spreads s
join run_queries q on q.query_id = s.query_id
where q.run_id = $run
