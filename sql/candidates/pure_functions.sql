-- grain: one row per function whose value depends on its arguments alone, as DuckDB declares it
-- not what an expression may call: storage/prefilter.py leaves some of these out and says why
select function_name
from duckdb_functions()
group by function_name
having bool_and(function_type = 'scalar' and stability = 'CONSISTENT')
order by function_name
