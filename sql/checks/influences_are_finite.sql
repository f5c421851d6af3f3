-- offending rows: influences that are NaN or infinite
select query_id, sequence_id, influence
from run_influences
where influence is null or isnan(influence) or isinf(influence)
