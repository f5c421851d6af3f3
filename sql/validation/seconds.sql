-- grain: one row per study: how many retrainings are done and how long one took
-- not the wall clock of the study: retrainings run beside one another
with done as (
    select distinct retraining, seed, seconds from retrainings where study_id = $study
)
select count(*) as n, median(seconds) as seconds from done
