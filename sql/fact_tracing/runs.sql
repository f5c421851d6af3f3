-- grain: one row per run of $runs, with what it took and how many documents its corpus has
select r.*, (select count(*) from documents) as n_documents
from runs r
where list_contains($runs, r.run_id)
order by list_position($runs, r.run_id)
