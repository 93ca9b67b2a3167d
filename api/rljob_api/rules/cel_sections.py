"""CEL rules within one section of the spec; the counterpart of `checks_sections.py`."""

from rljob_api.rules.cel_rule import Rule
from rljob_api.rules.checks_sections import CODE_LIMIT

SECTION_RULES = (
    Rule("spec.model", "has(self.path) != has(self.randomInit)", "give exactly one of path and randomInit"),
    Rule(
        "spec.model",
        "!has(self.randomInit) || has(self.tokenizerPath)",
        "required with spec.model.randomInit",
        "tokenizerPath",
        required=True,
    ),
    Rule(
        "spec.model.randomInit",
        "self.hiddenSize % (2 * self.numAttentionHeads) == 0",
        "{self.numAttentionHeads} heads do not split hiddenSize {self.hiddenSize} into an even width each "
        "(rotary embeddings turn pairs)",
        "numAttentionHeads",
    ),
    Rule(
        "spec.model.randomInit",
        "self.numAttentionHeads % self.numKeyValueHeads == 0",
        "{self.numKeyValueHeads} does not divide numAttentionHeads {self.numAttentionHeads}",
        "numKeyValueHeads",
    ),
    Rule(
        "spec.model.source",
        "self.type != 'persistentVolumeClaim' || has(self.claimName)",
        "required with source type persistentVolumeClaim",
        "claimName",
        required=True,
    ),
    Rule(
        "spec.model.source",
        "self.type != 'objectStore' || has(self.uri)",
        "required with source type objectStore",
        "uri",
        required=True,
    ),
    Rule(
        "spec.code",
        "[has(self.files) && self.files.size() > 0, has(self.configMap), has(self.persistentVolumeClaim), "
        "has(self.git), has(self.imagePath)].filter(given, given).size() <= 1",
        "at most one source of files, configMap, persistentVolumeClaim, git and imagePath",
    ),
    Rule(
        "spec.code",
        f"!has(self.files) || self.files.map(name, self.files[name].size()).sum() <= {CODE_LIMIT}",
        f"{{self.files.map(name, self.files[name].size()).sum()}} characters in all; at most {CODE_LIMIT}",
        "files",
    ),
    *(
        Rule(
            scaled,
            "self.minReplicas <= self.maxReplicas",
            "{self.minReplicas} is above maxReplicas {self.maxReplicas}",
            "minReplicas",
        )
        for scaled in ("spec.rollout.autoscaling", "spec.retriever.autoscaling")
    ),
    Rule("spec.sft", "has(self.numSteps) != has(self.numEpochs)", "give exactly one of numSteps and numEpochs"),
    Rule(
        "spec.lifecycle.gang",
        "self.scheduler != 'kai-scheduler' || has(self.queue)",
        "required with scheduler kai-scheduler, which leaves pods without a queue pending",
        "queue",
        required=True,
    ),
    Rule(
        "spec.lifecycle.gang",
        "self.scheduler != 'scheduler-plugins' || !has(self.queue)",
        "{self.queue} cannot be used: scheduler-plugins (coscheduling) has no queues",
        "queue",
    ),
    Rule("spec.algorithm", "self.epsClip < 1.0", "{self.epsClip} is not below 1", "epsClip"),
    Rule("spec.algorithm", "!has(self.dualClip) || self.dualClip > 1.0", "{self.dualClip} is not above 1", "dualClip"),
    Rule(
        "spec.algorithm.tis",
        "!self.enabled || self.lowerBound <= self.upperBound",
        "{self.lowerBound} is above upperBound {self.upperBound}",
        "lowerBound",
    ),
    Rule(
        "spec.rollout.generate",
        "self.type != 'custom' || has(self.function)",
        "required with generate type custom",
        "function",
        required=True,
    ),
    Rule(
        "spec.rollout.generate",
        "self.type == 'custom' || !has(self.function)",
        "is for generate type custom, but the type is {self.type}",
        "function",
    ),
    Rule(
        "spec.rollout.generate.tools.functions[]",
        "has(self.url) != has(self.function)",
        "give exactly one of url and function",
    ),
    Rule(
        "spec.rollout.generate.tools.functions[]",
        "!has(self.token) || has(self.url)",
        "is for a tool with a url",
        "token",
    ),
    Rule(
        "spec.rollout.sampling",
        "!has(self.maxTokensPerTurn) || self.maxTokensPerTurn <= self.maxResponseLength",
        "{self.maxTokensPerTurn} is above maxResponseLength {self.maxResponseLength}",
        "maxTokensPerTurn",
    ),
    Rule(
        "spec.rollout",
        "!has(self.overSamplingBatchSize) || self.overSamplingBatchSize >= self.batchSize",
        "{self.overSamplingBatchSize} is below batchSize {self.batchSize}",
        "overSamplingBatchSize",
    ),
    Rule(
        "spec.rollout",
        "!self.partialRollout || (has(self.overSamplingBatchSize) && self.overSamplingBatchSize != self.batchSize)",
        "has no effect unless overSamplingBatchSize is above batchSize {self.batchSize}: when the batch is "
        "full, nothing is unfinished",
        "partialRollout",
    ),
    Rule(
        "spec.reward.functions[]",
        "self.name != 'custom' || has(self.function)",
        "required with name custom",
        "function",
        required=True,
    ),
    Rule(
        "spec.reward.functions[]",
        "self.name == 'custom' || !has(self.function)",
        "is for name custom, but the name is {self.name}",
        "function",
    ),
    Rule("spec.reward.functions[]", "self.name != 'remote' || has(self.url)", "required with name remote", "url"),
    *(
        Rule(
            "spec.reward.functions[]",
            f"self.name == 'remote' || !has(self.{field})",
            "is for name remote, but the name is {self.name}",
            field,
        )
        for field in ("url", "token")
    ),
    Rule(
        "spec.reward",
        "self.functions.all(a, self.functions.exists_one(b, "
        "(has(a.label) ? a.label : a.name) == (has(b.label) ? b.label : b.name)))",
        "two have one name; tell them apart by label",
        "functions",
    ),
    Rule(
        "spec.trainer",
        "self.gpusPerReplica == 0 || self.ranksPerReplica == 1",
        "{self.ranksPerReplica} is for CPU; with gpusPerReplica {self.gpusPerReplica} there is one rank per GPU",
        "ranksPerReplica",
    ),
    Rule(
        "spec.trainer",
        "self.backend == 'megatron' || !has(self.megatronArgs)",
        "has no effect with backend {self.backend}; remove it",
        "megatronArgs",
    ),
    Rule(
        "spec.trainer.parallelism",
        "!self.sequence || self.tensor > 1",
        "needs tensor > 1, but tensor is {self.tensor}",
        "sequence",
    ),
    Rule(
        "spec.placement",
        "!has(self.maxStaleness) || self.type == 'async'",
        "is for placement type async, but the type is {self.type}",
        "maxStaleness",
    ),
    Rule(
        "spec.placement",
        "!self.offloadTrainer || self.type == 'colocated'",
        "is for placement type colocated, but the type is {self.type}",
        "offloadTrainer",
    ),
    Rule("spec.retriever", "!self.index.gpu || self.gpus > 0", "needs GPUs, but spec.retriever.gpus is 0", "index.gpu"),
    Rule(
        "spec.retriever",
        "self.encoder.device != 'cuda' || self.gpus > 0",
        "cuda needs GPUs, but spec.retriever.gpus is 0",
        "encoder.device",
    ),
    Rule("spec.lifecycle.earlyStop", "has(self.atLeast) != has(self.atMost)", "give exactly one of atLeast and atMost"),
    Rule("spec.checkpoint", "!(has(self.warmStart) && has(self.load))", "give at most one of load and warmStart"),
    *(
        Rule(
            f"{group}.env[]",
            "has(self.value) != has(self.secretKeyRef)",
            "{self.name}: give exactly one of value and secretKeyRef",
        )
        for group in ("spec.trainer.pod", "spec.trainer.headPod", "spec.rollout.pod", "spec.retriever.pod")
    ),
)
