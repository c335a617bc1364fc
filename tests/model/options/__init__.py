"""The registry test: every option of a network, alone, against something that we did not write, and on every way to cut it.

One data file for each kind of option, one engine (test_options.py), which goes over the files of this folder.  For each option:

* logits, loss and every gradient equal its reference in fp32 to 1e-5, with gains and biases that are not 1 and 0;
* two steps on T1, T2 with sequence parallelism and without, and P2, through DeepSpeed, equal a plain loop of torch on one rank;
* sampling with the cache and recomputing change nothing;
* the parameters are as many as ``model/config/partition.py`` counts, on one tensor rank and on two.

To add an option, add an entry to ``OPTIONS`` of a data file here, or a file with a dict of that name::

    OPTIONS = {"rmsnorm": Option(keys={"norm": "rmsnorm"}, reference=RMSNorm.logits)}

``keys`` are put over option.py's ``NETWORK``.  ``reference`` maps (weights by global name, all keys, tokens_BS) to logits_BSV and
can be differentiated; it shares no code with ``model/``.  Two ways to get one:

* a model of transformers: ``hugging_face("LlamaForCausalLM", config, names)`` (reference.py), which is called with our weights;
* else a subclass of ``ClosedForm`` (reference.py), the plain network in float64, which overrides the formula that the option
  changes.

``KEYS_WITH_VALUES`` (test_options.py) names the keys of which every value that trains must stand in an option: add yours.  Break
the formula in ``model/`` once and see the tests fail.
"""
