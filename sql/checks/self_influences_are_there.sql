-- offending rows: influences of the run's method that are not zero and have no relative influence
-- not those of methods without a metric, whose sequences have no self-influence
select query_id, sequence_id, influence
from run_influences
where method = $method
  and method in ('ekfac', 'kfac', 'identity')
  and relative_influence is null
  and influence <> 0
