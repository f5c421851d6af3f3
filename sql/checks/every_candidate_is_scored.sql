-- offending rows: candidates without an influence of the run's method
select distinct c.query_id, c.sequence_id
from run_candidates c
anti join (select query_id, sequence_id from run_influences where method = $method) i
    on i.query_id = c.query_id and i.sequence_id = c.sequence_id
