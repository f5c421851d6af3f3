-- grain: one row per (method, query, dataset) of a run: influences summed over the dataset's sequences, in nats
-- not a mean: a larger dataset has more to say
select method, query_id, dataset, influence
from dataset_influences($run, "by" := $by)
order by method, query_id, dataset
