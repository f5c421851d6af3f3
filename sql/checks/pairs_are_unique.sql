-- offending rows: (query, sequence, method) that occur more than once
select query_id, sequence_id, method, count(*) as occurrences
from run_influences
group by query_id, sequence_id, method
having count(*) > 1
