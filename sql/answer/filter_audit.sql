-- grain: at most one row: what the filter missed of one query's uniform sample; none without a sample or a filter
select *
from filter_audit($query, run := $run)
