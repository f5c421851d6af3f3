-- offending rows: candidates of a query, or with a document, that the set does not have
select distinct query_id, doc_id, query_id in (select query_id from queries) as is_known_query
from candidates
where query_id is null
    or doc_id is null
    or query_id not in (select query_id from queries)
    or doc_id not in (select doc_id from abstracts)
order by query_id, doc_id
limit 3
