BEGIN TRANSACTION;
CREATE TABLE artifact (
	sha256 VARCHAR(64) NOT NULL, 
	bytes INTEGER NOT NULL, 
	created_at FLOAT NOT NULL, 
	PRIMARY KEY (sha256)
);
CREATE TABLE attempt (
	id INTEGER NOT NULL, 
	job_id INTEGER NOT NULL, 
	n INTEGER NOT NULL, 
	fence INTEGER NOT NULL, 
	driver_id VARCHAR(32) NOT NULL, 
	node TEXT, 
	pid INTEGER, 
	gpu_ids TEXT, 
	started_at FLOAT NOT NULL, 
	ended_at FLOAT, 
	outcome TEXT, 
	error_class TEXT, 
	traceback TEXT, 
	PRIMARY KEY (id), 
	UNIQUE (job_id, n), 
	FOREIGN KEY(job_id) REFERENCES job (id), 
	FOREIGN KEY(driver_id) REFERENCES driver (id)
);
INSERT INTO "attempt" VALUES(1,1,1,1,'one','here',1,'',1.79556126786686444289e+09,1.79556126787025833136e+09,'done',NULL,NULL);
CREATE TABLE driver (
	id VARCHAR(32) NOT NULL, 
	host TEXT NOT NULL, 
	pid INTEGER NOT NULL, 
	process_started_at FLOAT NOT NULL, 
	started_at FLOAT NOT NULL, 
	heartbeat_at FLOAT NOT NULL, 
	stopped_at FLOAT, 
	version TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "driver" VALUES('one','here',1,0.0,1.79556126786275911328e+09,1.79556126786275911328e+09,NULL,'0');
CREATE TABLE event (
	id INTEGER NOT NULL, 
	at FLOAT NOT NULL, 
	job_id INTEGER, 
	fence INTEGER, 
	driver_id VARCHAR(32), 
	kind TEXT NOT NULL, 
	data JSON, 
	PRIMARY KEY (id), 
	FOREIGN KEY(job_id) REFERENCES job (id)
);
CREATE TABLE example_blob (
	job_id INTEGER NOT NULL, 
	n INTEGER NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	data BLOB NOT NULL, 
	PRIMARY KEY (job_id), 
	FOREIGN KEY(job_id) REFERENCES job (id)
);
CREATE TABLE job (
	id INTEGER NOT NULL, 
	"key" VARCHAR(64) NOT NULL, 
	kind TEXT NOT NULL, 
	spec JSON NOT NULL, 
	arch TEXT, 
	defence TEXT, 
	dataset TEXT, 
	attack TEXT, 
	norm TEXT, 
	eps FLOAT, 
	seed INTEGER NOT NULL, 
	recipe TEXT, 
	bundle_key VARCHAR(64) NOT NULL, 
	state TEXT NOT NULL, 
	priority INTEGER DEFAULT '0' NOT NULL, 
	fence INTEGER DEFAULT '0' NOT NULL, 
	attempt INTEGER DEFAULT '0' NOT NULL, 
	crashes INTEGER DEFAULT '0' NOT NULL, 
	max_crashes INTEGER DEFAULT '5' NOT NULL, 
	not_before FLOAT DEFAULT '0' NOT NULL, 
	cancel_requested BOOLEAN DEFAULT false NOT NULL, 
	lease_owner VARCHAR(32), 
	lease_expires_at FLOAT, 
	progress_done INTEGER, 
	progress_total INTEGER, 
	progress_note TEXT, 
	error_class TEXT, 
	error_message TEXT, 
	created_at FLOAT NOT NULL, 
	started_at FLOAT, 
	finished_at FLOAT, 
	PRIMARY KEY (id), 
	CONSTRAINT job_state CHECK (state in ('blocked', 'queued', 'leased', 'running', 'done', 'failed', 'cancelled')), 
	UNIQUE ("key"), 
	FOREIGN KEY(lease_owner) REFERENCES driver (id)
);
INSERT INTO "job" VALUES(1,'8231a3dd56950c6478d72e191ea932c91a8c6392e60079317c1a445745860157','train','{"kind": "train", "model": {"arch": "lenet5", "code": null, "weights": null, "normalize": null, "dropout_at_inference": null, "options": {}}, "data": {"place": "digits", "sha256": "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"}, "settings": {"objective": "standard", "attack": {}, "epochs": 1, "batch_size": 128, "optimizer": "sgd", "learning_rate": null, "momentum": 0.9, "weight_decay": 0.0005, "schedule": "onecycle", "crop": 0, "flip": false, "precision": "auto", "examples": "all", "validation": 0.1, "validation_examples": 1000, "validation_norm": "Linf", "validation_eps": 0.03137254901960784, "validation_steps": 10, "keep": "last"}, "seed": 0}','lenet5','standard','digits',NULL,NULL,NULL,0,NULL,'4c8be2b07093383643b481d38af9097ec18ca3078bd34243ce9e7043ae9334b0','done',1,1,1,0,5,0.0,0,NULL,1.79556138786323666572e+09,NULL,NULL,NULL,NULL,NULL,1.79556126785460805892e+09,1.79556126786686444289e+09,1.79556126786890220639e+09);
INSERT INTO "job" VALUES(2,'84ab01764c80b84699db13e57e1d5953f13fdabf5ca41aba3525e482aca3201b','eval','{"kind": "eval", "model": {"arch": "lenet5", "code": null, "weights": null, "normalize": null, "dropout_at_inference": null, "options": {}}, "train": "8231a3dd56950c6478d72e191ea932c91a8c6392e60079317c1a445745860157", "data": {"place": "digits", "sha256": "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"}, "attack": {"name": "fgsm", "norm": "Linf", "eps": 0.1, "restarts": 1, "curve": [], "params": {}}, "examples": 1000, "seed": 0, "batch_size": null, "draws": 100, "eot_draws": 20, "images": 0}','lenet5','standard','digits','fgsm','Linf',0.1,0,'fgsm()','aee0747a7722bd7bb8768b34edac75f37f413045ea13128b44a9d7da4be3bc30','queued',0,0,0,0,5,0.0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1.79556126785460805892e+09,NULL,NULL);
INSERT INTO "job" VALUES(3,'2f0cb374c997d1a3f502b2e80537a7ec5422c78f01776c1ed9db9ba1d0b591db','eval','{"kind": "eval", "model": {"arch": "lenet5", "code": null, "weights": null, "normalize": null, "dropout_at_inference": null, "options": {}}, "train": "8231a3dd56950c6478d72e191ea932c91a8c6392e60079317c1a445745860157", "data": {"place": "digits", "sha256": "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"}, "attack": {"name": "pgd", "norm": "Linf", "eps": 0.1, "restarts": 1, "curve": [], "params": {}}, "examples": 1000, "seed": 0, "batch_size": null, "draws": 100, "eot_draws": 20, "images": 0}','lenet5','standard','digits','pgd','Linf',0.1,0,'pgd()','aee0747a7722bd7bb8768b34edac75f37f413045ea13128b44a9d7da4be3bc30','queued',0,0,0,0,5,0.0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1.79556126785460805892e+09,NULL,NULL);
INSERT INTO "job" VALUES(4,'e2a1586b86bd0dae149d2659214e4833743a7b1572da559f6ec8757da5620373','worst','{"kind": "worst", "evals": ["2f0cb374c997d1a3f502b2e80537a7ec5422c78f01776c1ed9db9ba1d0b591db", "84ab01764c80b84699db13e57e1d5953f13fdabf5ca41aba3525e482aca3201b"], "norm": "Linf", "eps": 0.1}','lenet5','standard','digits','worst-case','Linf',0.1,0,'worst of 2','41a1c14a0a3f4da2663efd241396f982536cd787dcfb8edee22a8444b1a1ae63','blocked',0,0,0,0,5,0.0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1.79556126785460805892e+09,NULL,NULL);
INSERT INTO "job" VALUES(5,'dabc23f5b74313200e9b4ce9db3b87b997a4f8e80adff1b78935d0c30b25727a','train','{"kind": "train", "model": {"arch": "convnet3", "code": null, "weights": null, "normalize": null, "dropout_at_inference": null, "options": {}}, "data": {"place": "digits", "sha256": "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"}, "settings": {"objective": "standard", "attack": {}, "epochs": 1, "batch_size": 128, "optimizer": "sgd", "learning_rate": null, "momentum": 0.9, "weight_decay": 0.0005, "schedule": "onecycle", "crop": 0, "flip": false, "precision": "auto", "examples": "all", "validation": 0.1, "validation_examples": 1000, "validation_norm": "Linf", "validation_eps": 0.03137254901960784, "validation_steps": 10, "keep": "last"}, "seed": 0}','convnet3','standard','digits',NULL,NULL,NULL,0,NULL,'ef8dcacccd59c5e98dc58440e1a7a2d279d2379187baf7eb631f6db2f95b6033','queued',1,0,0,0,5,0.0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1.79556126785460805892e+09,NULL,NULL);
INSERT INTO "job" VALUES(6,'2ddbfe16b67afc02b5768ac91494d3088956f09d43797e379f7c3c26fd85e717','eval','{"kind": "eval", "model": {"arch": "convnet3", "code": null, "weights": null, "normalize": null, "dropout_at_inference": null, "options": {}}, "train": "dabc23f5b74313200e9b4ce9db3b87b997a4f8e80adff1b78935d0c30b25727a", "data": {"place": "digits", "sha256": "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"}, "attack": {"name": "fgsm", "norm": "Linf", "eps": 0.1, "restarts": 1, "curve": [], "params": {}}, "examples": 1000, "seed": 0, "batch_size": null, "draws": 100, "eot_draws": 20, "images": 0}','convnet3','standard','digits','fgsm','Linf',0.1,0,'fgsm()','20effe774b18c0cbd904d7cc6ea165b228c547664e246a7cbc27cea059a1240e','blocked',0,0,0,0,5,0.0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1.79556126785460805892e+09,NULL,NULL);
INSERT INTO "job" VALUES(7,'c6fcb4ae4b40fa9d0c5da53621cfdbe26ea40a1142fbe3ddbe6e7c6c0ae3e2df','eval','{"kind": "eval", "model": {"arch": "convnet3", "code": null, "weights": null, "normalize": null, "dropout_at_inference": null, "options": {}}, "train": "dabc23f5b74313200e9b4ce9db3b87b997a4f8e80adff1b78935d0c30b25727a", "data": {"place": "digits", "sha256": "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"}, "attack": {"name": "pgd", "norm": "Linf", "eps": 0.1, "restarts": 1, "curve": [], "params": {}}, "examples": 1000, "seed": 0, "batch_size": null, "draws": 100, "eot_draws": 20, "images": 0}','convnet3','standard','digits','pgd','Linf',0.1,0,'pgd()','20effe774b18c0cbd904d7cc6ea165b228c547664e246a7cbc27cea059a1240e','blocked',0,0,0,0,5,0.0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1.79556126785460805892e+09,NULL,NULL);
INSERT INTO "job" VALUES(8,'f4675cf1f44c6c85c0188b00ef3475a661c9a088048a7e190060decb55ac400e','worst','{"kind": "worst", "evals": ["2ddbfe16b67afc02b5768ac91494d3088956f09d43797e379f7c3c26fd85e717", "c6fcb4ae4b40fa9d0c5da53621cfdbe26ea40a1142fbe3ddbe6e7c6c0ae3e2df"], "norm": "Linf", "eps": 0.1}','convnet3','standard','digits','worst-case','Linf',0.1,0,'worst of 2','41a1c14a0a3f4da2663efd241396f982536cd787dcfb8edee22a8444b1a1ae63','blocked',0,0,0,0,5,0.0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1.79556126785460805892e+09,NULL,NULL);
CREATE TABLE job_artifact (
	job_id INTEGER NOT NULL, 
	role TEXT NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	PRIMARY KEY (job_id, role), 
	FOREIGN KEY(job_id) REFERENCES job (id), 
	FOREIGN KEY(sha256) REFERENCES artifact (sha256)
);
CREATE TABLE job_dep (
	job_id INTEGER NOT NULL, 
	needs_id INTEGER NOT NULL, 
	PRIMARY KEY (job_id, needs_id), 
	FOREIGN KEY(job_id) REFERENCES job (id), 
	FOREIGN KEY(needs_id) REFERENCES job (id)
);
INSERT INTO "job_dep" VALUES(2,1);
INSERT INTO "job_dep" VALUES(3,1);
INSERT INTO "job_dep" VALUES(4,2);
INSERT INTO "job_dep" VALUES(4,3);
INSERT INTO "job_dep" VALUES(6,5);
INSERT INTO "job_dep" VALUES(7,5);
INSERT INTO "job_dep" VALUES(8,6);
INSERT INTO "job_dep" VALUES(8,7);
CREATE TABLE result (
	job_id INTEGER NOT NULL, 
	fence INTEGER NOT NULL, 
	n INTEGER NOT NULL, 
	clean_accuracy FLOAT NOT NULL, 
	clean_accuracy_low FLOAT, 
	clean_accuracy_high FLOAT, 
	robust_accuracy FLOAT NOT NULL, 
	robust_accuracy_low FLOAT, 
	robust_accuracy_high FLOAT, 
	any_draw_accuracy FLOAT, 
	distance_median FLOAT, 
	distance_mean FLOAT, 
	seconds FLOAT NOT NULL, 
	device TEXT NOT NULL, 
	versions JSON NOT NULL, 
	extra JSON, 
	recorded_at FLOAT NOT NULL, 
	PRIMARY KEY (job_id), 
	FOREIGN KEY(job_id) REFERENCES job (id)
);
INSERT INTO "result" VALUES(1,1,10,0.5,NULL,NULL,0.5,NULL,NULL,NULL,NULL,NULL,1.0,'cpu','{}',NULL,1.79556126786890220639e+09);
CREATE TABLE robustq_meta (
	schema_version INTEGER NOT NULL, 
	created_at FLOAT NOT NULL
);
INSERT INTO "robustq_meta" VALUES(1,1.79556126785178565979e+09);
CREATE TABLE sweep (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	spec JSON NOT NULL, 
	identity VARCHAR(64) NOT NULL, 
	created_at FLOAT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (identity)
);
INSERT INTO "sweep" VALUES(1,'small','{"name": "small", "dataset": "digits", "models": {"a": {"arch": "lenet5", "file": null, "weights": null, "normalize": null, "dropout_at_inference": null, "options": {}, "train": {}}}, "attacks": [{"name": "pgd", "norm": null, "eps": null, "restarts": 1}], "train": {}, "seeds": [0], "examples": 1000, "images": 0, "batch_size": null, "draws": 100, "eot_draws": 20}','small00000000000000000000000000000000000000000000000000000000000',1.79556126785460805892e+09);
CREATE TABLE sweep_job (
	sweep_id INTEGER NOT NULL, 
	job_id INTEGER NOT NULL, 
	model TEXT NOT NULL, 
	PRIMARY KEY (sweep_id, job_id), 
	FOREIGN KEY(sweep_id) REFERENCES sweep (id), 
	FOREIGN KEY(job_id) REFERENCES job (id)
);
INSERT INTO "sweep_job" VALUES(1,1,'a');
INSERT INTO "sweep_job" VALUES(1,2,'a');
INSERT INTO "sweep_job" VALUES(1,3,'a');
INSERT INTO "sweep_job" VALUES(1,4,'a');
INSERT INTO "sweep_job" VALUES(1,5,'b');
INSERT INTO "sweep_job" VALUES(1,6,'b');
INSERT INTO "sweep_job" VALUES(1,7,'b');
INSERT INTO "sweep_job" VALUES(1,8,'b');
CREATE INDEX ix_sweep_name ON sweep (name);
CREATE INDEX job_leased ON job (lease_owner) WHERE state in ('leased', 'running');
CREATE INDEX job_bundle ON job (bundle_key, state);
CREATE INDEX job_queued ON job (priority, id) WHERE state = 'queued';
CREATE INDEX ix_job_dep_needs_id ON job_dep (needs_id);
CREATE INDEX ix_sweep_job_job_id ON sweep_job (job_id);
CREATE INDEX ix_event_job_id ON event (job_id);
CREATE VIEW v_results AS
SELECT j.id AS job_id, s.id AS sweep_id, s.name AS sweep, sj.model AS model, j.arch AS arch, j.defence AS defence,
       j.dataset AS dataset, j.attack AS attack, j.norm AS norm, j.eps AS eps, j.seed AS seed, j.recipe AS recipe,
       r.n AS n,
       r.clean_accuracy AS clean_accuracy, r.clean_accuracy_low AS clean_accuracy_low,
       r.clean_accuracy_high AS clean_accuracy_high,
       r.robust_accuracy AS robust_accuracy, r.robust_accuracy_low AS robust_accuracy_low,
       r.robust_accuracy_high AS robust_accuracy_high, r.any_draw_accuracy AS any_draw_accuracy,
       r.distance_median AS distance_median, r.distance_mean AS distance_mean,
       r.seconds AS seconds, r.device AS device, r.versions AS versions, r.recorded_at AS recorded_at, j.key AS key
FROM result r
JOIN job j ON j.id = r.job_id
JOIN sweep_job sj ON sj.job_id = j.id
JOIN sweep s ON s.id = sj.sweep_id
WHERE j.kind IN ('eval', 'worst');
COMMIT;
