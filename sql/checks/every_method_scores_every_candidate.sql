-- offending rows: candidates that a method passed over; beside the run's own, a filter's scores are of what it found
select c.query_id, c.sequence_id, m.method
from (select distinct query_id, sequence_id from run_candidates) c
cross join (
    select distinct method from run_influences where method not in ('bm25', 'tfidf', 'lucene')
    union
    select $method as method
) m
anti join run_influences i
    on i.query_id = c.query_id and i.sequence_id = c.sequence_id and i.method = m.method
