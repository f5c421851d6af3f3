-- grain: one row per share of one query's scored candidates: the part of the positive influence it holds
select top_share::double as top_share, n_sequences, share_of_positive_influence
from coverage($query, run := $run)
order by top_share
