-- grain: one row: how many candidate rows a run has
select count(*) as n from run_candidates
