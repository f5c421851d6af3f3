-- grain: one row per position of one sequence, for the picture of the summary
select token, influence
from token_heatmap($query, $sequence, run := $run)
order by position
